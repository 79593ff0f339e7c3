"""Views of an image: their distribution, and how host and device make them."""
