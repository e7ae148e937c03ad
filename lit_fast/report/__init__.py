"""Reports, tables and figures of runs with classifiers."""
