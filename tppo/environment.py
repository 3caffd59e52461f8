from tppo.runs.folder import environment, warn  # noqa
