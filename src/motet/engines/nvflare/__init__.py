"""NVFlare as a courier: its server and clients carry frames between the hub and sites' agents."""
