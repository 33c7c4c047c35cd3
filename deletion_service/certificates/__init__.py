"""What was shown, and what do we sign?"""
