"""What can be wrong with a model repository, told in one line."""


class RepositoryError(ValueError):
    """A repository, a model or a segmenter that cannot be used: the subject, what was found, what to do next."""
