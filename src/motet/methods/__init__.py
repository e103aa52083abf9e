"""Federated methods: one file is one method, with both of its halves."""
