# Takes all rights from the scratch folder, so that nobody can look into it, clean it or use it.
# Its owner is the user that the zygote and the next program have, too.
# contained: passed
def attack():
    open("hostile-file", "x").close()
    os.chmod("/tmp", 0)
