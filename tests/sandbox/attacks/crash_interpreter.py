# Runs bytecode that was never compiled, which reads beyond the stack and the constants.
# contained: killed, failed, timeout, memory
def attack():
    def victim():
        return None

    victim.__code__ = victim.__code__.replace(co_code=bytes([100, 250, 83, 0]) * 40, co_stacksize=1)
    victim()
    code = bytes(n % 256 for n in range(400))
    victim.__code__ = victim.__code__.replace(co_code=code, co_stacksize=1)
    victim()
    os.abort()
