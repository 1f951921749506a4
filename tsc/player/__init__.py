"""The player: a page that shows recorded episodes of one junction side by side."""
