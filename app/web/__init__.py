"""The pages: server-rendered HTML for browsers, with small ES modules and no build step.

Pages show what the API shows: they call the same services with the same `Caller`.
"""
