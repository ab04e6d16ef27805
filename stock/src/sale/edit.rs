//! What may be corrected of a published sale. It changes nothing by itself: whether and when an edit may be made, the database says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SaleDefinition;
use crate::Timestamp;

macro_rules! sale_edit {
    ($($key:ident: $kind:ty,)*) => {
        /// The keys of a `[[sale]]` that are to be other ones. Those that are not here (`id`, `total`, …) stay as they were published.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct SaleEdit {
            $(
                #[doc = concat!("See [`SaleDefinition::", stringify!($key), "`].")]
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $key: Option<$kind>,
            )*
        }

        impl SaleEdit {
            /// `definition` with this edit.
            #[must_use]
            pub fn of(&self, definition: &SaleDefinition) -> SaleDefinition {
                let mut edited = definition.clone();
                $(if let Some(value) = &self.$key { edited.$key = value.clone(); })*
                edited
            }

            /// The edit that leads from one definition to another, or as near to it as edits lead.
            #[must_use]
            pub fn between(from: &SaleDefinition, to: &SaleDefinition) -> Self {
                Self { $($key: (from.$key != to.$key).then(|| to.$key.clone()),)* }
            }
        }
    };
}

sale_edit! {
    item_id: String,
    title: String,
    description: String,
    currency: String,
    price: u64,
    list_price: u64,
    per_user_limit: u32,
    passes_per_unit: u32,
    pay_within_s: u32,
    starts_at: Timestamp,
    ends_at: Timestamp,
    labels: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_leads_from_one_definition_to_the_other() {
        let from: SaleDefinition = serde_json::from_str(
            r#"{"id":"s","price":100,"total":5,"starts_at":"2026-01-01T00:00:00Z","ends_at":"2026-01-02T00:00:00Z"}"#,
        )
        .unwrap();
        assert_eq!(SaleEdit::between(&from, &from), SaleEdit::default());
        let to = SaleDefinition {
            title: "t".into(),
            price: 200,
            ends_at: Timestamp(from.ends_at.0 + 1),
            ..from.clone()
        };
        let edit = SaleEdit::between(&from, &to);
        assert_eq!(edit.of(&from), to);
        let json = serde_json::to_value(&edit).unwrap();
        assert_eq!(json.as_object().map(serde_json::Map::len), Some(3), "{json}");
        assert_eq!(serde_json::from_value::<SaleEdit>(json).unwrap(), edit);
        // No edit leads to another total.
        let more = SaleDefinition { total: 6, ..from.clone() };
        assert_eq!(SaleEdit::between(&from, &more).of(&from), from);
        assert!(serde_json::from_str::<SaleEdit>(r#"{"total":6}"#).is_err());
    }
}
