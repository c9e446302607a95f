-- Orders for wrk, an established closed-loop load generator: `wrk -t2 -c64 -d10s -s benches/wrk/orders.lua http://127.0.0.1:9090/order`.
-- Each thread numbers its orders, and the time makes a second run's ids new.
local thread_number = 0
function setup(thread)
    thread:set("number", thread_number)
    thread_number = thread_number + 1
end

function init()
    count = 0
    prefix = string.format("w%dt%do", os.time(), number)
end

function request()
    count = count + 1
    local first, second = count * 7919 % 10000 + 1, count * 104729 % 10000 + 1
    local body = string.format('{"id":"%s%d","products":[{"id":%d,"quantity":1},{"id":%d,"quantity":2}]}', prefix, count, first, second)
    return wrk.format("POST", "/order", { ["content-type"] = "application/json" }, body)
end
