# Uses all cores at once by threads that leave the interpreter's lock: twice the time in the same time.
# A program may use its time, but not everybody's.
# contained: timeout
import hashlib
import threading

threading.stack_size(64 << 10)


def attack():
    def burn():
        while True:
            hashlib.pbkdf2_hmac("sha256", b"x", b"x", 1_000_000)

    for _ in range(8):
        threading.Thread(target=burn, daemon=True).start()
    burn()
