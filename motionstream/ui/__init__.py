"""The web app: one file a tab, and the live canvas that the tabs share."""
