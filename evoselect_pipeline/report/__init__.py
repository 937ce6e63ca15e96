"""One round on one page: what it says, how it is drawn and how it becomes HTML. No stores."""
