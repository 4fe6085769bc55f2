# Puts lists, dicts and sets into themselves and each other, in what it returns and in what it was given.
# contained: failed, passed, memory
def feed(*given):
    items, table = given[0], given[1]
    items.append(table)
    table["items"] = items
    table["self"] = table
    return [items, table, given]
