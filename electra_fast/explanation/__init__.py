"""Why a classifier decided so: attributions of words by integrated gradients, as text and as a page."""

from electra_fast.explanation.explain import Explainer, Explanation, Word

__all__ = ["Explainer", "Explanation", "Word"]
