"""Where a person meets the package: the command line and the reports."""
