"""From attention maps to masks, and the contract of the served models. Needs numpy alone; Python 3.10 and later.

It lies beside the server's model so that Triton's Python stub can import it; everything else imports it too.
"""

from slime_was.weighting import accumulate, drop_absent, interpolation_matrix, scores, segment

__all__ = ["accumulate", "drop_absent", "interpolation_matrix", "scores", "segment"]
