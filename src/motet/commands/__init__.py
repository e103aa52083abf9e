"""What the commands of ``motet`` do; each module is imported when one of its commands runs."""
