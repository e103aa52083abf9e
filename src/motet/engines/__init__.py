"""Carriers of messages between hub and sites."""
