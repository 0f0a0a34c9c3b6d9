"""Looks up segmenters of the shared form, which are files, by name. Imports numpy and safetensors alone."""

from slime_store.store import Entry, Store, StoreError, UnknownSegmenterError, content, write

__all__ = ["Entry", "Store", "StoreError", "UnknownSegmenterError", "content", "write"]
