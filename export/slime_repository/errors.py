"""What can be wrong with a model repository, or with the object store that it is kept in, told in one line."""


class RepositoryError(ValueError):
    """A repository, a model or a segmenter that cannot be used: the subject, what was found, what to do next."""


class ObjectStoreError(RuntimeError):
    """An object store that cannot be reached, refuses, or holds what was not pushed; told in one line."""
