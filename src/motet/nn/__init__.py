"""Pure pieces that several methods and models share."""
