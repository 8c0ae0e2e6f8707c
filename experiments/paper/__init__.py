"""The published tables: what they hold, their numbers, our cells beside them."""
