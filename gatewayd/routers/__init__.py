"""Router plug-ins: one package each, found by name and never imported by neutral code."""
