"""Named and local texts, cut into token windows the way each protocol cuts them."""
