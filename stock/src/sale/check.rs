//! Whether a sale's definition makes sense. Each message names the key and says what is allowed.

use super::{SaleDefinition, currency_digits};

/// Longest `item_id`, in characters.
const ITEM_ID_CHARS_MAX: usize = 128;
/// Longest `title`, in characters.
const TITLE_CHARS_MAX: usize = 200;
/// Longest `description`, in characters.
const DESCRIPTION_CHARS_MAX: usize = 10_000;
/// Most `labels`.
const LABELS_MAX: usize = 32;
/// Longest name of a label, in characters.
const LABEL_NAME_CHARS_MAX: usize = 64;
/// Longest value of a label, in characters.
const LABEL_VALUE_CHARS_MAX: usize = 256;
/// Longest `pay_within_s`: 30 days.
const PAY_WITHIN_S_MAX: u32 = 30 * 24 * 3_600;

/// One key of a definition that cannot stand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {problem}")]
pub struct SaleError {
    /// Which key.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl SaleDefinition {
    /// Checks every key; the first that cannot stand is named.
    ///
    /// # Errors
    /// [`SaleError`]. A checked definition multiplies without overflow: `price × quantity` of any allowed quantity fits an i64.
    pub fn validate(&self) -> Result<(), SaleError> {
        self.check_figures()?;
        check_text("item_id", &self.item_id, ITEM_ID_CHARS_MAX, false)?;
        check_text("title", &self.title, TITLE_CHARS_MAX, false)?;
        check_text("description", &self.description, DESCRIPTION_CHARS_MAX, true)?;
        self.check_labels()
    }

    fn check_figures(&self) -> Result<(), SaleError> {
        if currency_digits(&self.currency).is_none() {
            let problem = format!(
                "{:?} is no currency with minor units in ISO 4217: it must be three upper-case letters of that list, such as CNY",
                self.currency
            );
            return wrong("currency", problem);
        }
        if self.total == 0 {
            return wrong("total", "must be at least 1");
        }
        if self.per_user_limit == 0 {
            return wrong("per_user_limit", "must be at least 1");
        }
        let dearest = self.price.checked_mul(u64::from(self.per_user_limit));
        if dearest.is_none_or(|amount| i64::try_from(amount).is_err()) {
            return wrong(
                "price",
                "times per_user_limit must stay below 9,223,372,036,854,775,808 minor units",
            );
        }
        if i64::try_from(self.list_price).is_err() {
            return wrong("list_price", "must stay below 9,223,372,036,854,775,808 minor units");
        }
        if self.pay_within_s == 0 || self.pay_within_s > PAY_WITHIN_S_MAX {
            return wrong("pay_within_s", format!("must be 1 to {PAY_WITHIN_S_MAX} seconds"));
        }
        if self.starts_at >= self.ends_at {
            let problem = format!("({}) must be after starts_at ({})", self.ends_at, self.starts_at);
            return wrong("ends_at", problem);
        }
        Ok(())
    }

    fn check_labels(&self) -> Result<(), SaleError> {
        if self.labels.len() > LABELS_MAX {
            return wrong("labels", format!("must be at most {LABELS_MAX}"));
        }
        for (name, value) in &self.labels {
            if name.is_empty() {
                return wrong("labels", "must not have an empty name");
            }
            check_text("labels", name, LABEL_NAME_CHARS_MAX, false)?;
            check_text("labels", value, LABEL_VALUE_CHARS_MAX, false)?;
        }
        Ok(())
    }
}

fn check_text(key: &'static str, text: &str, chars_max: usize, many_lines: bool) -> Result<(), SaleError> {
    if text.chars().count() > chars_max {
        return wrong(key, format!("must be at most {chars_max} characters long"));
    }
    let allowed = |c: char| !c.is_control() || many_lines && matches!(c, '\n' | '\r' | '\t');
    if !text.chars().all(allowed) {
        return wrong(key, "must not contain control characters");
    }
    Ok(())
}

fn wrong(key: &'static str, problem: impl Into<String>) -> Result<(), SaleError> {
    Err(SaleError { key, problem: problem.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> SaleDefinition {
        serde_json::from_str(
            r#"{"id": "demo", "price": 206640, "total": 100,
                "starts_at": "2026-11-11T20:00:00+08:00", "ends_at": "2026-11-11T21:00:00+08:00"}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_defaults_stand() {
        let sale = good();
        assert_eq!(sale.validate(), Ok(()));
        assert_eq!((sale.currency.as_str(), sale.per_user_limit, sale.pay_within_s), ("CNY", 1, 900));
    }

    #[test]
    fn each_bad_key_is_named() {
        type Spoil = fn(&mut SaleDefinition);
        let cases: [(&str, Spoil); 17] = [
            ("currency", |sale| sale.currency = "cny".into()),
            ("currency", |sale| sale.currency = "元".into()),
            ("currency", |sale| sale.currency = "XAU".into()),
            ("currency", |sale| sale.currency = "ZZZ".into()),
            ("total", |sale| sale.total = 0),
            ("per_user_limit", |sale| sale.per_user_limit = 0),
            ("price", |sale| sale.price = i64::MAX as u64 + 1),
            ("price", |sale| (sale.price, sale.per_user_limit) = (i64::MAX as u64 / 2, 3)),
            ("list_price", |sale| sale.list_price = u64::MAX),
            ("pay_within_s", |sale| sale.pay_within_s = 0),
            ("pay_within_s", |sale| sale.pay_within_s = u32::MAX),
            ("ends_at", |sale| sale.ends_at = sale.starts_at),
            ("item_id", |sale| sale.item_id = "x".repeat(129)),
            ("title", |sale| sale.title = "a\nb".into()),
            ("description", |sale| sale.description = "\0".into()),
            ("labels", |sale| sale.labels = [(String::new(), "x".into())].into()),
            ("labels", |sale| sale.labels = (0..33).map(|n| (n.to_string(), String::new())).collect()),
        ];
        for (key, spoil) in cases {
            let mut sale = good();
            spoil(&mut sale);
            let error = sale.validate().unwrap_err();
            assert_eq!(error.key, key, "{error}");
            assert!(error.to_string().starts_with(&format!("{key} ")), "{error}");
        }
    }

    #[test]
    fn lines_in_a_description_and_dear_things_are_fine() {
        let mut sale = good();
        sale.description = "one\r\n\ttwo".into();
        sale.price = i64::MAX as u64;
        sale.title = "秒".repeat(200);
        assert_eq!(sale.validate(), Ok(()));
    }
}
