"""What a report page shows, gathered from a store: nothing is run or made here."""
