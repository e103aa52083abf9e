"""Middleware that changes what travels, by declared kind."""
