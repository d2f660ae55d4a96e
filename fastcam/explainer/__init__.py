"""Pictures in, maps with their classes out: :func:`explain` once, :class:`Explainer` repeatedly."""

from fastcam.explainer.explainer import AGAINST, TOP_CLASS, Explained, Explainer
from fastcam.explainer.explanation import Explanation, explain

__all__ = ["AGAINST", "TOP_CLASS", "Explained", "Explainer", "Explanation", "explain"]
