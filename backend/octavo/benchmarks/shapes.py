"""A checkpoint's sizes, as the planner's formulas take them."""

from octavo.models.sizes import decoder_shape

__all__ = ["decoder_shape"]
