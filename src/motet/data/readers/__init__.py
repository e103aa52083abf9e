"""Readers of data in the formats that they are published in."""
