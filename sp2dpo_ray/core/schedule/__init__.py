"""The schedule: estimators, maps, tables, figures, and the checks of what is published.

In: the annotations table. Out: one beta a pair, with everything that an auditor needs to follow it.
"""
