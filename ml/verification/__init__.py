"""The steps of one verification: plan what to ask, measure, check validity, assemble the report."""
