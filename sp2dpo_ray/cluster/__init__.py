"""A cluster from outside: handing in commands as jobs, and how large it should be."""
