"""The studio inside Label Studio: its ML backend protocol, brush regions, and what is fetched from it."""
