"""The studio: a page on this machine on which people paint parts, learn a segmenter, correct it and publish it."""
