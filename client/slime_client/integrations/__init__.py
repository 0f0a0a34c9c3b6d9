"""Served segmenters inside the tools that people already annotate and look with; each module needs its own extra.

Nothing here is imported by the rest of the client.
"""
