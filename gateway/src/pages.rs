//! The pages: every byte of them is in the binary and in memory, so that serving one costs a lookup. Knows no sale: the same page serves all
//! of them and asks the API, and any cache on the way may keep it.
//!
//! Assets live under a directory named after the hash of all of them. A page names the assets it was made with; while two versions run
//! side by side a gateway answers the other one's names with its own assets, uncached.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::LazyLock;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use sha2::{Digest, Sha256};
use stock::{OrderId, SaleId};

macro_rules! embedded {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("../pages/", $name)))),*] };
}

const ASSETS: [(&str, &str); 18] = embedded![
    "api.js",
    "attempt.js",
    "clock.js",
    "console.css",
    "console.js",
    "follow.js",
    "home.js",
    "icon.svg",
    "order.js",
    "page.js",
    "pow-worker.js",
    "pow.js",
    "question.js",
    "sale.js",
    "store.js",
    "style.css",
    "text.js",
    "ticket.js",
];
const PAGES: [(&str, &str); 4] = embedded!["console.html", "home.html", "order.html", "sale.html"];

/// Nothing from elsewhere, nothing inline, not inside another page.
const POLICY: &str = "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// How long a page may be behind after a new version.
const CACHE_PAGE: &str = "public, max-age=30, stale-while-revalidate=300";
const CACHE_ASSET: &str = "public, max-age=31536000, immutable";
const CACHE_OTHER_VERSION: &str = "no-cache";

struct File {
    content_type: HeaderValue,
    etag: HeaderValue,
    plain: Bytes,
    gzip: Bytes,
}

struct Files {
    version: String,
    by_name: BTreeMap<&'static str, File>,
}

static FILES: LazyLock<Files> = LazyLock::new(|| {
    let mut all = Sha256::new();
    for (name, text) in &ASSETS {
        all.update(name);
        all.update(text);
    }
    let version = hex(&all.finalize()[..6]);
    let assets = ASSETS.iter().map(|&(name, text)| (name, File::new(name, text.to_owned())));
    let pages = PAGES.iter().map(|&(name, text)| (name, File::new(name, text.replace("VERSION", &version))));
    Files { by_name: assets.chain(pages).collect(), version }
});

impl File {
    fn new(name: &str, text: String) -> Self {
        let content_type = match name.rsplit('.').next() {
            Some("html") => "text/html; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            _ => "image/svg+xml",
        };
        let etag = format!("\"{}\"", hex(&Sha256::digest(&text)[..12]));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        // Writing to memory does not fail; should it, the plain text is served under both names.
        let gzip = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).unwrap_or_default();
        Self {
            content_type: HeaderValue::from_static(content_type),
            etag: HeaderValue::from_maybe_shared(Bytes::from(etag))
                .unwrap_or(HeaderValue::from_static("\"\"")),
            plain: Bytes::from(text),
            gzip: Bytes::from(gzip),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The answer to `GET path` (no query) on the buyers' listener where the path is a page's or an asset's, else `None`. Of the request's
/// headers `If-None-Match` and `Accept-Encoding` count. For `HEAD` the caller leaves the body out.
#[must_use]
pub fn respond(path: &str, request: &HeaderMap) -> Option<Response<Bytes>> {
    serve(route(path, &FILES.version)?, request)
}

/// The same on the operator's listener: `/console` and what it is made of. The page itself is no secret and holds none; it asks for the
/// operator's token and sends it with its calls.
#[must_use]
pub fn console(path: &str, request: &HeaderMap) -> Option<Response<Bytes>> {
    let below = path.strip_prefix("/console")?;
    let named =
        if below.is_empty() { ("console.html", CACHE_OTHER_VERSION) } else { asset(below, &FILES.version)? };
    serve(named, request)
}

fn serve((name, cache): (&str, &'static str), request: &HeaderMap) -> Option<Response<Bytes>> {
    let files = &*FILES;
    let file = files.by_name.get(name)?;
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(ETAG, file.etag.clone());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    if request.get_all("if-none-match").iter().any(|value| matches(value, &file.etag)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Some(response);
    }
    headers.insert(CONTENT_TYPE, file.content_type.clone());
    let gzip = !file.gzip.is_empty() && request.get_all("accept-encoding").iter().any(takes_gzip);
    if gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    *response.body_mut() = if gzip { file.gzip.clone() } else { file.plain.clone() };
    Some(response)
}

/// The file that a path names, and how long it may be kept.
fn route<'p>(path: &'p str, version: &str) -> Option<(&'p str, &'static str)> {
    if path == "/" {
        return Some(("home.html", CACHE_PAGE));
    }
    if path == "/favicon.ico" {
        return Some(("icon.svg", CACHE_PAGE));
    }
    if let Some(sale) = path.strip_prefix("/sales/") {
        return sale.parse::<SaleId>().is_ok().then_some(("sale.html", CACHE_PAGE));
    }
    if let Some(order) = path.strip_prefix("/orders/") {
        return order.parse::<OrderId>().is_ok().then_some(("order.html", CACHE_PAGE));
    }
    asset(path.strip_prefix("/assets")?, version)
}

/// `/VERSION/NAME`.
fn asset<'p>(path: &'p str, version: &str) -> Option<(&'p str, &'static str)> {
    let (of, name) = path.strip_prefix('/')?.split_once('/')?;
    let cache = if of == version { CACHE_ASSET } else { CACHE_OTHER_VERSION };
    (!name.ends_with(".html")).then_some((name, cache))
}

/// RFC 9110, 13.1.2: weak comparison against a list or `*`.
fn matches(value: &HeaderValue, etag: &HeaderValue) -> bool {
    let Ok(list) = value.to_str() else { return false };
    let tags = list.split(',').map(|tag| tag.trim().trim_start_matches("W/"));
    tags.into_iter().any(|tag| tag == "*" || tag.as_bytes() == etag.as_bytes())
}

/// Whether gzip is among the codings and not refused by a weight of zero.
fn takes_gzip(value: &HeaderValue) -> bool {
    let Ok(list) = value.to_str() else { return false };
    list.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"))
            && !parts.any(|weight| matches!(weight, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use super::{FILES, HeaderMap, HeaderValue, StatusCode, respond};

    fn get(path: &str, headers: &[(&'static str, &str)]) -> Option<hyper::Response<super::Bytes>> {
        let map = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()));
        respond(path, &map.collect::<HeaderMap>())
    }

    #[test]
    fn pages_and_assets_are_found_and_nothing_else() {
        let asset = format!("/assets/{}/style.css", FILES.version);
        for path in
            ["/", "/sales/demo-1", "/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV", "/favicon.ico", asset.as_str()]
        {
            let answer = get(path, &[]).unwrap();
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
            assert!(
                answer.headers()["content-security-policy"]
                    .to_str()
                    .unwrap()
                    .starts_with("default-src 'none'")
            );
        }
        for path in [
            "",
            "/sales/",
            "/sales/a/b",
            "/sales/%2e",
            "/orders/x",
            "/assets/x",
            "/assets/x/sale.html",
            "/assets/x/../y",
            "/x",
        ] {
            assert!(get(path, &[]).is_none(), "{path}");
        }
    }

    #[test]
    fn the_console_is_on_its_own_listener_alone() {
        let none = HeaderMap::new();
        assert!(get("/console", &[]).is_none() && super::console("/", &none).is_none());
        assert_eq!(super::console("/console", &none).unwrap().status(), StatusCode::OK);
        let asset = format!("/console/{}/console.js", FILES.version);
        assert_eq!(super::console(&asset, &none).unwrap().headers()["cache-control"], super::CACHE_ASSET);
        assert!(super::console("/console/", &none).is_none() && super::console("/consoles", &none).is_none());
    }

    #[test]
    fn assets_of_this_version_are_kept_and_those_of_another_are_not() {
        let ours = get(&format!("/assets/{}/sale.js", FILES.version), &[]).unwrap();
        assert_eq!(ours.headers()["cache-control"], super::CACHE_ASSET);
        let other = get("/assets/000000000000/sale.js", &[]).unwrap();
        assert_eq!(other.headers()["cache-control"], super::CACHE_OTHER_VERSION);
        assert_eq!(ours.body(), other.body());
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        let etag = get("/", &[]).unwrap().headers()["etag"].to_str().unwrap().to_owned();
        for known in [etag.clone(), format!("W/{etag}"), format!("\"a\", {etag}"), "*".to_owned()] {
            let answer = get("/", &[("if-none-match", &known)]).unwrap();
            assert_eq!((answer.status(), answer.body().len()), (StatusCode::NOT_MODIFIED, 0), "{known}");
        }
        assert_eq!(get("/", &[("if-none-match", "\"a\"")]).unwrap().status(), StatusCode::OK);
    }

    #[test]
    fn gzip_goes_to_whoever_takes_it() {
        for (coding, expected) in
            [("gzip, br", true), ("br;q=1, GZIP;q=0.5", true), ("gzip;q=0", false), ("br", false)]
        {
            let answer = get("/", &[("accept-encoding", coding)]).unwrap();
            assert_eq!(answer.headers().contains_key("content-encoding"), expected, "{coding}");
            assert_eq!(answer.body().starts_with(&[0x1F, 0x8B]), expected);
        }
    }

    #[test]
    fn pages_are_small_and_name_nothing_from_elsewhere() {
        let sent: usize = FILES.by_name.values().map(|file| file.gzip.len()).sum();
        assert!(sent < 60 * 1024, "{sent} bytes");
        for (name, file) in &FILES.by_name {
            let text = std::str::from_utf8(&file.plain).unwrap();
            assert!(!text.contains("VERSION/"), "{name}");
            let addresses = text.matches("://").count() - text.matches("http://www.w3.org/2000/svg").count();
            assert_eq!(addresses, 0, "{name} names another host");
            for forbidden in ["<style", " style=", " onclick", "innerHTML", "eval("] {
                assert!(!text.contains(forbidden), "{name}: {forbidden}");
            }
        }
    }
}
