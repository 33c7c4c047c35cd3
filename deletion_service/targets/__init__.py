"""What must be forgotten, in which model?"""
