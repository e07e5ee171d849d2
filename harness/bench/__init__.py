"""How fast our attacks are beside those of other libraries, in one run, judged alike."""
