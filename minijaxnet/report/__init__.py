"""Pictures and pages of what the three jobs found."""
