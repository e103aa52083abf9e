"""Flower as a courier: SuperLink and SuperNodes carry questions to the sites' agents."""
