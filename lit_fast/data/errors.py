"""The one error of this package: every problem with data is reported as `DataError`, naming the file or argument."""


class DataError(ValueError):
    """Data is missing, corrupt, or was asked for in a way that cannot be given."""
