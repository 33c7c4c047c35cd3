"""The demonstration: a deployment on one machine, and the people who use it through the real doors.

It is a client of the service, never a part of it: whatever it knows, a person at a browser or a machine with a key
could know. Nothing in the product imports it.
"""
