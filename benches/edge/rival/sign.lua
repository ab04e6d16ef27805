-- Passes for `count` users from number `from` on, a line each. Before the measurement.
local rival = require "rival"
local from, count = tonumber(ngx.var.arg_from), tonumber(ngx.var.arg_count)
local passes = {}
for number = from, from + count - 1 do
  local signed = string.format("%026d.user-%d.%d", number, number, ngx.time() + 3600)
  passes[#passes + 1] = signed .. "." .. ngx.encode_base64(ngx.hmac_sha1(rival.secret, signed))
end
local body = table.concat(passes, "\n")
ngx.header["Content-Length"] = #body
ngx.print(body)
