"""The platform for Google TPUs."""
