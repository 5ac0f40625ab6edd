{% test has_parent(model, to, columns, parent_columns=none) %}
-- rows without a row of another model that has the same values in these columns, among which is captured_at: so only the
-- days that are tested are read of the other model
select child.*
from (select * from {{ model }}) as child
where not exists (
    select 1
    from {{ to }} as parent
    where {{ recent('parent.captured_at') }}
    {%- for column in columns %}
        and parent.{{ (parent_columns or columns)[loop.index0] }} = child.{{ column }}
    {%- endfor %}
)
{% endtest %}
