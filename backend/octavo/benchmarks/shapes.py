"""See octavo.models.shapes."""

from octavo.models.shapes import decoder_shape as decoder_shape
