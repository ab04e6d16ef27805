-- The rival's press of the button, in nginx: checks the pass (order.user.end.MAC), reads the quantity, asks Redis once over
-- a connection that is kept, answers. No window, no pause, no limit on requests, no idempotent repeat, no disk of its own.
local rival = require "rival"
local redis = require "nginx.redis"

local function answer(status, body)
  ngx.status = status
  ngx.header["Content-Type"] = "application/json"
  ngx.header["Cache-Control"] = "no-store"
  ngx.header["Content-Length"] = #body
  ngx.print(body)
end

local pass = ngx.var.http_floodgate_pass or ""
local signed, order, user, ends, mac = pass:match("^(([^.]+)%.([^.]+)%.(%d+))%.(.+)$")
if not signed or ngx.encode_base64(ngx.hmac_sha1(rival.secret, signed)) ~= mac or tonumber(ends) <= ngx.time() then
  return answer(401, '{"type":"pass-invalid"}')
end

ngx.req.read_body()
local quantity = tonumber((ngx.req.get_body_data() or ""):match('"quantity":%s*(%d+)')) or 1
if quantity < 1 then return answer(400, '{"type":"bad-request"}') end

local connection = redis:new()
connection:set_timeout(1000)
if not connection:connect("127.0.0.1", rival.port) then return answer(503, '{"type":"busy"}') end
local taken = connection:evalsha(rival.take, 3, "units", "users", "orders", user, order, quantity)
if not taken then return answer(503, '{"type":"uncertain"}') end
connection:set_keepalive(60000, 1024)

if taken == 1 then return answer(409, '{"type":"limit-reached"}') end
if taken == 2 then return answer(410, '{"type":"sold-out"}') end
ngx.header["Location"] = "/api/v1/orders/" .. order
answer(202, '{"order_id":"' .. order .. '","status":"queued","poll_after_ms":500}')
