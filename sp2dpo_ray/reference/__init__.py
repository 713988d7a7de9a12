"""The reference pass: log-probabilities of the frozen student, computed once for all arms."""
