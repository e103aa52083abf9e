"""Contenders of the benchmark, each a process that plays rounds when told."""
