"""A battery of models whose depth of change is known by construction: is the judge's verdict right on them?"""
